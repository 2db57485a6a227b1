"""What a person starts: each puts data, model, training or evaluation together. Never imported below."""

"""A model of ours on the Hugging Face hub, by `huggingface_hub`'s mixin.

model = openjepa.HubModel.of(openjepa.load("runs/photos"))
model.save_pretrained("photos-hf")
model.push_to_hub("me/photos")
model = openjepa.HubModel.from_pretrained("me/photos")
"""

import copy
from pathlib import Path
from typing import Any

from openjepa.errors import UserError
from openjepa.formats.huggingface import huggingface_config, write_huggingface
from openjepa.hub import exported, fetch, model_of_export
from openjepa.methods import IJEPA, Method

try:
    from huggingface_hub import ModelHubMixin
except ImportError:
    raise UserError("openjepa.HubModel needs huggingface_hub: pip install 'openjepa[hf]'") from None


class HubModel(IJEPA, ModelHubMixin, library_name="openjepa", tags=["ijepa", "openjepa"]):
    """An I-JEPA with `save_pretrained`, `from_pretrained` and `push_to_hub`.

    What is saved is a folder of transformers' `IJepaModel` with the predictor beside it; the one encoder in it is the
    target encoder.
    """

    @classmethod
    def of(cls, model: Method) -> "HubModel":
        """The same model, tensors and all, with these methods.

        Raises:
            UserError: It is of another method than I-JEPA.
        """
        if not isinstance(model, IJEPA):
            raise UserError(f"HubModel: a model of I-JEPA is expected, this is one of {type(model).__name__}")
        one = copy.copy(model)
        one.__class__ = cls
        assert isinstance(one, HubModel)
        one._hub_mixin_config = None
        return one

    def _save_pretrained(self, save_directory: Path) -> None:
        write_huggingface(save_directory, exported(self), huggingface_config(self.target_encoder))

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> "HubModel":
        num_heads = options.pop("num_heads", None)
        folder = Path(model_id)
        if not folder.is_dir():
            known = ("revision", "cache_dir", "force_download", "local_files_only", "token")
            folder = fetch(model_id, **{key: options[key] for key in known if key in options})
        return cls.of(model_of_export(folder, num_heads=num_heads))

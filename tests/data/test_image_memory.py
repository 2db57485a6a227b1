"""What is kept of decoded images, and what is let go."""

import numpy as np

from openjepa.data.image_memory import ImageMemory


def kept(memory: ImageMemory, num: int) -> list[int]:
    return [index for index in range(num) if memory.get(index) is not None]


def test_the_first_images_stay_and_of_the_others_the_latest() -> None:
    memory = ImageMemory(num_bytes=25, recent_bytes=20)
    for index in range(6):
        memory.put(index, np.full(10, index, np.uint8))
        assert memory.get(index) is not None
    assert kept(memory, 6) == [0, 1, 4, 5]
    memory.put(6, np.zeros(5, np.uint8))  # there is room for this one
    memory.put(7, np.zeros(15, np.uint8))
    assert kept(memory, 8) == [0, 1, 6, 7]
    memory.put(8, np.zeros(21, np.uint8))  # larger than all that may be kept
    assert kept(memory, 9) == [0, 1, 6]
    memory.put(9, np.zeros(20, np.uint8))
    memory.put(9, np.zeros(20, np.uint8))
    assert kept(memory, 10) == [0, 1, 6, 9]


def test_without_room_nothing_is_kept() -> None:
    memory = ImageMemory(0)
    memory.put(0, np.zeros(1, np.uint8))
    assert memory.get(0) is None

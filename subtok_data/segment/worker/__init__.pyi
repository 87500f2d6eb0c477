from .shared_memory import Slot as Slot, allocate_slot as allocate_slot

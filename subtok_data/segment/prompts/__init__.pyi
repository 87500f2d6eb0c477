from .boxes import pixel_box as pixel_box
from .prompts import Prompts as Prompts, add_prompts as add_prompts, fit_prompts as fit_prompts
from .regions import prompt_regions as prompt_regions
from .validate import BoxFormat as BoxFormat

"""
Thresholds, strengths, counts
=============================

Three controls decide how fine the tokens are. One boundary map serves them all.
"""

from skimage import data

from subtok_data import SubobjectTokenizer
from subtok_data.viz import plot_thresholds

tokens = SubobjectTokenizer(size=384)(data.astronaut())
plot_thresholds(
    tokens, thresholds=(0.05, 0.1, 0.3), strengths=(0.2, 0.4, 0.7), num_tokens=(16, 64, 200)
)

# %%
# A **strength** gives each image as many tokens as it has borders that strong; the default is 0.4.
# A **count** is exact. Of both, coarser tokens are unions of finer ones. A **threshold** is the
# paper's control: seeds are the parts of the map below it, so that a higher one joins seeds and
# finds new ones.

photos = {name: getattr(data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")}
print("strength   " + "".join(f"{name:>10}" for name in photos))
for strength in (0.2, 0.4, 0.7):
    tokenizer = SubobjectTokenizer(strength=strength, size=384)
    counts = [tokenizer(photo).num_tokens for photo in photos.values()]
    print(f"{strength:<11}" + "".join(f"{count:>10}" for count in counts))

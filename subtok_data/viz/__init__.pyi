from .plots import (
    boundary_image as boundary_image,
    mean_color_image as mean_color_image,
    outline_image as outline_image,
    plot_thresholds as plot_thresholds,
    plot_tokens as plot_tokens,
)

"""Pictures and explanations of a run, made from plain data: evaluated plans, the chosen plan, and reasons."""

from prunegym.agents.pictures.canvas import figure_pixels, png
from prunegym.agents.pictures.heatmap import plans_heatmap
from prunegym.agents.pictures.pareto import front, pareto_figure
from prunegym.agents.pictures.plan_bars import plan_bars_figure
from prunegym.agents.pictures.reasons import reasons
from prunegym.agents.pictures.reward_curve import reward_curve_figure
from prunegym.agents.pictures.runs import Run, read_inputs, read_updates, run_pictures, words

__all__ = [
    "Run",
    "figure_pixels",
    "front",
    "pareto_figure",
    "plan_bars_figure",
    "plans_heatmap",
    "png",
    "read_inputs",
    "read_updates",
    "reasons",
    "reward_curve_figure",
    "run_pictures",
    "words",
]

"""Courses of a stance over a run, and the answers of probes that follow them: the truth of `answer_curves`."""

import numpy as np

# Of the share of the stage; 0 at its start, about 1 at its end.
COURSES = {
    "flat": lambda t: 0 * t,
    "linear": lambda t: t,
    "early": lambda t: 1 - np.exp(-t / 0.0333),  # 95% in the first tenth of the stage
    "saturating": lambda t: 1 - np.exp(-t / 0.1),
    "late": lambda t: 1 / (1 + np.exp(-(t - 0.75) / 0.06)),
    "ramp": lambda t: np.maximum(t - 0.6, 0) / 0.4,
}
DRIFT = 0.3  # mean shift at the end, in probability


def answered(rng, course, steps, total, probes, samples, base):
    """Mean stances [S, P] of probes at anchors. An answer takes a side, +1 or -1, with probability 0.65; the mean of a
    probe begins anywhere in -0.35 to 0.35 and moves by the course, times its own size (mean `DRIFT`, deviation half of
    it). base: answers of a probe at step 0."""
    size = rng.normal(DRIFT, DRIFT / 2, probes)
    mean = rng.uniform(-0.35, 0.35, probes) + COURSES[course](np.asarray(steps) / total)[:, None] * size  # [S, P]
    out = np.empty_like(mean)
    for s, at in enumerate(mean):
        u = rng.random((probes, samples if steps[s] else base))
        out[s] = ((u < (0.65 + at[:, None]) / 2).astype(float) - (u > 1 - (0.65 - at[:, None]) / 2)).mean(1)
    return out


def true_shift(course, steps, total):
    """The mean shift over all probes there could be."""
    path = COURSES[course](np.asarray(steps) / total)
    return DRIFT * (path - COURSES[course](np.zeros(1)))

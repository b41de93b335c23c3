"""The loop that warm-up and image training share: Lightning, counted in optimiser steps.

What a config comes to (`plan`), what is trained (`module`), starting and resuming it (`start`), and
what happens after a step: checkpoints and stopping (`saving`), lines and bars (`meters`).
"""

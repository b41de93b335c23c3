"""What a start or a training did to a network: its weights, its attention, its frozen features.

`figures` says what every number means and where its definition comes from. `models` and `images`
bring together what is probed; `blocks`, `features` and `spatial` hold the probes; `run` goes
through them all, `show` says what they found on a terminal, `page` on an HTML page.
"""

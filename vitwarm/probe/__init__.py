"""What a start or a training did to a network: its weights, its attention, its frozen features.

`figures` says what every number means and where its definition comes from. `models` and `images`
bring together what is probed; `weights`, `attention`, `similarity`, `linear` and `spatial` hold one
kind of probe each, `scenes` the masks and boxes that the last one needs; `run` goes through them
all, `show` says what they found on a terminal, `page` and `drawings` on an HTML page.
"""

"""Reading tars: from what a user names to an index of labelled images."""

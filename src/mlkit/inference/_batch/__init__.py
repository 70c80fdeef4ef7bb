"""The one idea of a batch: rows are collated, placed, run and split back, whatever happens to some of them."""

"""What the losses cost, against verl's own: ``make bench``."""

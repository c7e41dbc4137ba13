"""Training of the networks that trained editors need, on cases apart from every page's facts."""

"""What the paradigms share: training, networks by name, the exchange at a cut, agreements of row-clients."""

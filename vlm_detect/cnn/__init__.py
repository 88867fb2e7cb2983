"""The CNNs that a vision-language model has to beat or to explain better than: networks, training, heat maps, pages."""

"""All that has to be seen on a card, in under ten minutes: `make gpu`."""

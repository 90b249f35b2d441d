"""Let people go through predictions in a browser and correct labels and marks; the answers make a new data set."""

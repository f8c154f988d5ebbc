"""One layer's linear recurrence in modal form, the maps of its weights, its discretisation, some of its channels."""

"""The typed configuration: names, types, units and rules. Values live in configs/*.yaml, never here."""

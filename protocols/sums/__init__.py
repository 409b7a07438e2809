"""From many parties to one: ways to add up what they hold, which differ in who sees the parts."""

"""What the papers state, as formulas to test. Imports algebra; nothing imports it but notebooks and tests."""

"""The loads: programs that send while faults happen.

Nothing is imported here: some of these programs have to patch first.
"""

"""For the programs that greendrop lives in; each module needs the vendor in its name.

None of them is needed: a producer works in each of these hosts as it is. They save the
lines that one would write there again and again.
"""

"What mixing costs, measured beside other libraries: `python -m bench`"

"""How fast the platform is, what it costs and how that grows, beside what one would do without it.

`python -m bench` measures everything, `python -m bench PART …` some of it; see `python -m bench --help`.
"""

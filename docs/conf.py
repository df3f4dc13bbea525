"""Sphinx: `make docs` writes docs/_build/html; a warning is an error."""

import warnings

from sphinx_gallery.sorting import ExplicitOrder

from sklearn_excb import ExCBEstimator, __version__

project = "sklearn_excb"
author = "The sklearn_excb developers"
copyright = author
version = release = __version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "_templates", "report_pictures.py"]
templates_path = ["_templates"]
suppress_warnings = [
    "config.cache",  # the order of the gallery cannot be pickled
    "ref.ref",  # of scikit-learn's own pages, in methods that are inherited from it
]

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 4

autosummary_generate = True
autosummary_context = {  # methods of our own mixins, which sphinx calls inherited
    "of_mixins": [
        name
        for base in ExCBEstimator.__mro__[1:]
        if base.__module__.startswith("sklearn_excb")
        for name in vars(base)
    ]
}
autodoc_typehints = "none"  # numpydoc has them
numpydoc_show_class_members = False

html_theme = "pydata_sphinx_theme"
html_title = "sklearn_excb"
html_sidebars = {"*": []}  # pages without others below them
html_theme_options = {
    "show_prev_next": False,
    "navbar_align": "left",
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
    "secondary_sidebar_items": ["page-toc"],
}

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": "/plot_",
    "ignore_pattern": r"(quickstart|several_devices|ray_|embed_folder|train_imagenet)",
    "within_subsection_order": ExplicitOrder(
        [
            "plot_folder.py",
            "plot_near_labels.py",
            "plot_duplicates.py",
            "plot_embeddings.py",
            "plot_pipeline.py",
            "plot_stream.py",
            "plot_figures.py",
        ]
    ),
    "doc_module": ("sklearn_excb", "evaluation"),
    "reference_url": {"sklearn_excb": None, "evaluation": None},
    "capture_repr": (),
    "min_reported_time": 1,
    "download_all_examples": False,
    "show_memory": False,
}
warnings.filterwarnings("ignore", message="FigureCanvasAgg is non-interactive")

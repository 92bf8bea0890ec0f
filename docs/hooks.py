"""Pages of the site from elsewhere: figures, notebooks, and one page of the API for each module."""

import importlib
import inspect
from pathlib import Path

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
MODULES = (
    *("jaxfl", "algorithms", "components", "networks", "data", "models"),
    *("metrics", "problems", "plots", "results"),
)


def api(name):
    """The page of a module: every public class and function, by where its code is."""
    path = "jaxfl" if name == "jaxfl" else f"jaxfl.{name}"
    module = importlib.import_module("jaxfl.studies.results" if name == "results" else path)
    lines = [f"# {path}", "", inspect.cleandoc(module.__doc__ or ""), ""]
    for label in sorted(dir(module), key=str.lower):
        value = getattr(module, label)
        public = label[0] != "_" and (inspect.isclass(value) or inspect.isfunction(value))
        if public and value.__module__.startswith("jaxfl"):
            lines += [f"::: {value.__module__}.{value.__qualname__}", ""]
    return "\n".join(lines)


@event_priority(100)  # before the plugin that turns notebooks into pages
def on_files(files, config):
    """Adds what pages show and `docs` does not hold."""
    for home, pattern in ((ROOT / "benchmarks", "results/*"), (ROOT, "notebooks/*.ipynb")):
        for path in sorted(home.glob(pattern)):
            name, to = path.relative_to(home).as_posix(), config.site_dir
            files.append(File(name, str(home), to, config.use_directory_urls))
    for name in MODULES:
        files.append(File.generated(config, f"api/{name}.md", content=api(name)))
    return files

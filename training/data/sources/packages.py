"""What the sources that live in installed packages share."""

from importlib.metadata import PackageNotFoundError, version

from training.errors import DataError


def find_version(name: str, package: str) -> str:
    """Find the installed version of the package that the source ``name`` reads.

    Raises:
        DataError: It is not installed.
    """
    try:
        return version(package)
    except PackageNotFoundError:
        raise DataError(
            f"data.sources.{name} reads the Python package {package}, which is not installed; "
            "run `pip install 'metier[demo]'`"
        ) from None

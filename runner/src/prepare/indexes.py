# Answers where the files of Python indexes are: [URL, ...] on stdout for {"indexes": [URL, ...]} on stdin.
import glob, json, os, re, sys, urllib.parse, urllib.request


def built_in():
    """The index that pip knows by itself, and the host of its files."""
    try:
        from pip._internal.models.index import PyPI
    except ImportError:
        import ensurepip

        bundled = os.path.join(os.path.dirname(ensurepip.__file__), "_bundled", "pip-*.whl")
        sys.path[:0] = glob.glob(bundled)
        from pip._internal.models.index import PyPI
    return PyPI.simple_url.rstrip("/"), "https://" + PyPI.file_storage_domain


def files_of(index):
    page = index.rstrip("/") + "/pip/"
    accept = "application/vnd.pypi.simple.v1+json, text/html;q=0.1"
    request = urllib.request.Request(page, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=10) as answer:
        text = answer.read(1 << 25).decode()
        if "json" in answer.headers.get("Content-Type", ""):
            found = [file["url"] for file in json.loads(text)["files"]]
        else:
            found = re.findall(r'href="([^"]+)"', text)
        links = [urllib.parse.urljoin(answer.url, link) for link in found] + [answer.url]
    return {"{0.scheme}://{0.netloc}".format(urllib.parse.urlsplit(link)) for link in links}


def main():
    try:
        known = dict([built_in()])
    except Exception:
        known = {}
    files = set()
    for index in json.load(sys.stdin)["indexes"]:
        try:
            files |= {known[index.rstrip("/")]} if index.rstrip("/") in known else files_of(index)
        except Exception:
            pass  # It has no such page, or wants a login.
    print(json.dumps(sorted(files)))


main()

"""The pages at `/` (the playground) and `/inspect`: HTML, style sheets and scripts, nothing from another host."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llama3.resources import resource

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}
# Not from `mimetypes`: on Windows it reads the registry, where .js may be text/plain, which `nosniff` does not run.
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
# URL path -> file of this package. Only these files are served: the path of a request is never used as a path on disk.
FILES = {
    "/": "server/static/index.html",
    "/inspect": "server/static/inspect.html",
    "/static/base.css": "static/base.css",
    **{
        f"/static/{name}": f"server/static/{name}"
        for name in ("style.css", "chat.js", "parameters.js", "code.js", "ask.js")
    },
    **{f"/static/{name}": f"inspect/static/{name}" for name in ("inspect.css", "inspect.js")},
}
VIEWS = b"<!-- views -->"  # the place in inspect.html of what `llama3 inspect --html` shows


async def static_file(request: Request) -> Response:
    file = resource(*FILES[request.url.path].split("/"))
    content = file.read_bytes()  # small: read in one go
    if VIEWS in content:
        content = content.replace(VIEWS, resource("inspect", "static", "inspect.html").read_bytes())
    return Response(content, headers=HEADERS, media_type=MEDIA_TYPES[file.suffix])


ROUTES = [Route(path, static_file, methods=["GET"]) for path in FILES]

"""The playground page at `/`: HTML, a style sheet and three scripts, with nothing loaded from another host."""

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
# URL path -> file. Only these files are served: the path of a request is never used as a path on disk.
FILES = {
    "/": "index.html",
    **{f"/static/{name}": name for name in ("style.css", "chat.js", "parameters.js", "code.js")},
}


async def static_file(request: Request) -> Response:
    file = resource("server", "static", FILES[request.url.path])
    return Response(file.read_bytes(), headers=HEADERS, media_type=MEDIA_TYPES[file.suffix])  # small: read in one go


ROUTES = [Route(path, static_file) for path in FILES]

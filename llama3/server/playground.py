"""The page at `/`: three small scripts, a style sheet, nothing from another host."""

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from llama3.resources import resource

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {"content-security-policy": POLICY, "x-content-type-options": "nosniff", "cache-control": "no-cache"}
FILES = {  # what is served, and nothing else: no path of a request is looked up on disk
    "/": "index.html",
    **{f"/static/{name}": name for name in ("style.css", "chat.js", "parameters.js", "code.js")},
}


async def page(request: Request) -> Response:
    return FileResponse(resource("server", "static", FILES[request.url.path]), headers=HEADERS)


routes = [Route(path, page) for path in FILES]

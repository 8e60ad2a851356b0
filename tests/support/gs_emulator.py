"""gcp-storage-emulator on a port of this machine: `python -m tests.support.gs_emulator PORT`.

It leaves out the generations of objects and the conditions on them, without which TensorStore's databases cannot read
what they wrote; these are added here, as https://cloud.google.com/storage/docs/request-preconditions has them.
"""

import sys
from http import HTTPStatus
from typing import Any

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects


def generation(storage: Any, request: Any, name: str) -> str:
    """Of an object as it is now; 0: there is none."""
    try:
        return storage.get_file_obj(request.params["bucket_name"], name)["generation"]
    except NotFound:
        return "0"


def get(handler: Any) -> Any:
    """Gives the object's generation, or says that it is still the one that the client has."""

    def conditional(request: Any, response: Any, storage: Any) -> None:
        now = generation(storage, request, request.params["object_id"])
        if request.query.get("ifGenerationNotMatch") == [now] and now != "0":
            response.status = HTTPStatus.NOT_MODIFIED
        else:
            handler(request, response, storage)
        response["x-goog-generation"] = now

    return conditional


def insert(request: Any, response: Any, storage: Any) -> None:
    """Writes the object if its generation is still the one that the client knows."""
    wanted = request.query.get("ifGenerationMatch")
    if wanted and wanted != [generation(storage, request, request.query["name"][0])]:
        response.status = HTTPStatus.PRECONDITION_FAILED
    else:
        objects.insert(request, response, storage)


def main() -> None:
    """Serves for ever."""
    ours = {objects.get: get(objects.get), objects.download: get(objects.download), objects.insert: insert}
    for _, handlers in server.HANDLERS:
        for method, handler in handlers.items():
            handlers[method] = ours.get(handler, handler)
    server.server.HTTPServer = server.server.ThreadingHTTPServer  # one request that never ends holds up no other
    server.create_server("127.0.0.1", int(sys.argv[1]), in_memory=True).run()


if __name__ == "__main__":
    main()

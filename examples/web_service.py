"""Requests of many users, one row each, answered by a model that runs on batches.

`python web_service.py` sends it sixty requests; `uvicorn web_service:app` serves it.
"""

import asyncio
from contextlib import asynccontextmanager

import httpx
import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from mlkit.errors import OverloadedError
from mlkit.inference import Batcher

weights = np.random.default_rng(0).standard_normal((3, 2))


def model(batch: np.ndarray) -> np.ndarray:  # (n, 3) -> (n, 2)
    return batch @ weights


batcher = Batcher(model, max_batch_size=32, max_queue=64)


@asynccontextmanager
async def lifespan(_app: Starlette):  # noqa: ANN201
    async with batcher:
        yield


async def predict(request: Request) -> JSONResponse:
    row = np.asarray(await request.json(), dtype=float)
    try:
        scores = await batcher.submit(row, deadline=5.0)
    except OverloadedError as error:
        return JSONResponse({"error": str(error)}, 503)
    return JSONResponse(scores.round(3).tolist())


app = Starlette(routes=[Route("/predict", predict, methods=["POST"])], lifespan=lifespan)


async def main() -> None:
    transport = httpx.ASGITransport(app=app)
    client = httpx.AsyncClient(transport=transport, base_url="http://service")
    async with app.router.lifespan_context(app), client:
        rows = [[i, 1.0, 0.5] for i in range(60)]
        answers = await asyncio.gather(*[client.post("/predict", json=row) for row in rows])
        assert [answer.status_code for answer in answers] == [200] * 60
        print("first answer:", answers[0].json())
        stats = batcher.stats()
        print(f"{stats.n_done} rows in {stats.n_batches} batches")


if __name__ == "__main__":
    asyncio.run(main())

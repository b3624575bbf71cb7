"""NVIDIA FLARE's simulator, after its example with PyTorch and Opacus: a FedAvg recipe and a client script."""

import json
import os
import re
import tempfile
from datetime import datetime
from pathlib import Path

import torch
from flare_net import Net
from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe import SimEnv
from task import accuracy, epsilon_of_the_run, read_work, test_images, write_result

WORK, RESULT = os.environ["PEER_WORK"], os.environ["PEER_RESULT"]
MOST_CLIENTS = 10  # processes at a time


def main():
    work = read_work(WORK)
    with tempfile.TemporaryDirectory() as folder:
        recipe = FedAvgRecipe(
            name="peer",
            model=Net(),
            min_clients=work["nodes"],
            num_rounds=work["rounds"],
            train_script=str(Path(__file__).parent / "flare_client.py"),
        )
        threads = min(MOST_CLIENTS, work["nodes"])
        recipe.execute(SimEnv(num_clients=work["nodes"], num_threads=threads, workspace_root=folder))
        (saved,) = Path(folder).rglob("FL_global_model.pt")
        model = Net()
        model.load_state_dict(torch.load(saved, weights_only=True)["model"])
        write_result(
            RESULT,
            ends_of_rounds(folder),
            accuracy=accuracy(model, *test_images(WORK)),
            epsilon=epsilon_of_the_run(work),
            unit="image",
        )


def ends_of_rounds(folder):
    """Seconds at which rounds began and the last one ended, from the server's log."""
    (log,) = Path(folder).glob("*/server/log.json")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    ends = [line["asctime"] for line in lines if re.search(r"Round \d+ started|Finished FedAvg", line["message"])]
    return [datetime.strptime(end, "%Y-%m-%d %H:%M:%S,%f").timestamp() for end in ends]


if __name__ == "__main__":
    main()

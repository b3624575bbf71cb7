"""A client of NVIDIA FLARE, by its client API: receive a model, train it with Opacus, send it back."""

import os

import nvflare.client as flare
from flare_net import Net
from task import accuracy, node_images, private_epoch, read_work, test_share

EVALUATED = os.environ.get("PEER_VARIANT") == "evaluated"


def main():
    path = os.environ["PEER_WORK"]
    work = read_work(path)
    flare.init()
    node = int(flare.get_site_name().removeprefix("site-")) - 1
    model = Net()
    images, labels = node_images(path, node)
    held_out = test_share(path, node) if EVALUATED else None
    while flare.is_running():
        received = flare.receive()
        if received is None:
            break
        model.load_state_dict(received.params)
        metrics = {"accuracy": accuracy(model, *held_out)} if held_out else None  # by which the server picks a model
        private_epoch(model, images, labels, work)
        steps = {"NUM_STEPS_CURRENT_ROUND": work["local_steps"]}
        flare.send(flare.FLModel(params=model.state_dict(), metrics=metrics, meta=steps))


if __name__ == "__main__":
    main()

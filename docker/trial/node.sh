#!/bin/sh
# A node of the federation in compose.yml: makes its key, approves what this same release brings, and waits to be let in.
set -eu
name=$1
until [ -e /exchange/federation.join ]; do sleep 1; done
if [ ! -e "$FEDGRAFT_NODE/node.toml" ]; then
    fedgraft node init --join /exchange/federation.join --name "$name" --data "/data/$name.npz" \
        --classes 0,1,2,3,4,5,6,7,8,9 --size 500 --epsilon 8 --delta 1e-5
fi
fedgraft node approve app
fedgraft node approve backbone embedded/glyph
cp "$FEDGRAFT_NODE/node.key.pub" "/exchange/.$name" && mv "/exchange/.$name" "/exchange/$name.pub"
until [ -e "/exchange/$name.in" ]; do sleep 1; done
exec fedgraft node start --isolation container --health-port 9094

#!/bin/sh
# The server of the federation in compose.yml: makes certificates and the join file, lets the nodes in that are named.
set -eu
if [ ! -e "$FEDGRAFT_SERVER/server.toml" ]; then
    fedgraft server init --name server
fi
cp "$FEDGRAFT_SERVER/federation.join" /exchange/.join && mv /exchange/.join /exchange/federation.join
{
    for name in "$@"; do  # one after the other: each command rewrites the list of nodes
        until [ -e "/exchange/$name.in" ]; do
            if [ -e "/exchange/$name.pub" ] && fedgraft server add-node "$name" --key "/exchange/$name.pub"; then
                touch "/exchange/$name.in"
            fi
            sleep 2
        done
    done
} &
exec fedgraft server start --health-port 9094

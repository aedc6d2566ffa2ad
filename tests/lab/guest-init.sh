#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
# The guest's first and only process: the network card's driver, then /script, then the end.
# busybox runs it as udhcpc's event handler, too, with the event as its argument.
export PATH=/bin

case "$1" in
bound | renew)
    ip addr flush dev "$interface" scope global
    ip addr add "$ip/${mask:-24}" dev "$interface"
    [ -z "$router" ] || ip route replace default via "${router%% *}"
    echo "$ip" >/address
    echo "${router%% *}" >/gateway
    exit 0
    ;;
?*) exit 0 ;;
esac

# Functions for /script

say() { echo "GUEST: $*"; }

# An address by DHCP: "address 10.0.0.2/24 via 10.0.0.1". No retry: the network is up before the guest.
dhcp() {
    if udhcpc -i eth0 -f -n -q -t 4 -T 2 -s /init >/dev/null 2>&1; then
        say "address $(cat /address) via $(cat /gateway)"
    else
        say "no address"
    fi
}

# reach NAME ADDRESS [SOURCE]: "NAME answers" or "NAME is silent"
reach() {
    if ping -c 2 -W 1 ${3:+-I "$3"} "$2" >/dev/null 2>&1; then say "$1 answers"; else say "$1 is silent"; fi
}

# ask ADDRESS PORT PATH: the last line of what an HTTP server answers; empty where none does in 5 s
ask() { printf 'GET %s HTTP/1.0\r\n\r\n' "$3" | nc -w 5 "$1" "$2" 2>/dev/null | tail -n 1; }

# The MAC address of a neighbour that has answered
mac_of() { ip neigh show "$1" | sed -n 's/.*lladdr \([0-9a-f:]*\).*/\1/p'; }

mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
for module in /modules/*.ko; do insmod "$module"; done
ip link set lo up
if [ -e /sys/class/net/eth0 ]; then
    # Nobody else has this address, so there is nothing to wait for.
    echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad
    ip link set eth0 up
fi
say up
[ ! -f /script ] || . /script
say end
poweroff -f

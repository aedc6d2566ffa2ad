# SPDX-License-Identifier: LGPL-2.1-or-later
"""The laboratory: a machine's network, bus, polkit and users, made in namespaces of the test's own.

Everything privileged is tested here, so that nothing of the host is changed. The pieces, each a
module:

``stage``       the project's files below a prefix, as a package would install them
``debs``        the Debian packages themselves, built once for a state of the checkout
``namespaces``  a private view of /usr/local, /run, /etc and of the network
``host``        what that host looks like from the inside
``elsewhere``   a second network namespace, another host; ``peer`` answers there
``outside``     one that is the world beyond the uplink; ``neighbour``: one on a cable to a bridge
``second``      a second uplink to the same world
``expecting``   helpers of connection tracking, and what they expect
``lan``         a bridge as an administrator makes one, and another host on its network
``daemon``      a daemon under test, and what it said
``bus``         Debian's own system bus, with service activation
``polkit``      Debian's own polkitd, and its rules
``fakepolkit``  polkit's name, owned by a test that answers what it wants
``broker``      the real broker on that bus
``brokerlog``   its journal lines
``client``      asks the broker as a user, and brings the TAPs back
``rawbus``      a user's own connection to the bus, message by message, with the descriptors
``users``       programs run as an ordinary user
``tap``         the guest's end of a TAP; ``frames`` go through; ``forgeries``: those that must not;
                ``filterframes``: those that libvirt's stock filters are about
``kernelguest``  a guest that is a namespace's kernel, for connections; ``standin`` runs there
``capture``     what went through the TAPs, as a file when the test fails
``policy``      what may pass, by the documents: the kernel's rules are compared with it;
                ``randomframes`` draws what is judged
``throttled``   its traffic by the clock, and the limits of it
``guesttraffic`` what a guest says to the services of its network
``shells``      bash, zsh and fish at a terminal, where the command is a fake
``guest``       a Debian kernel with a busybox initramfs, which ``cpio`` writes
``attended``    such a guest of a user's, which does what is typed
``report``      what a demo shows, and whether it holds
``links``       wait for an interface to come or go; ``files``: for a directory to become empty
``fakesysfs``   a host's /sys and /proc as files, for unit tests
``flushing``    somebody else who takes our rules away, and when they are back
``doctoring``   a guest beside another firewall, and what doctor says of it
``leaks``       what is there now, to be compared with what was there before

The lab knows the project only as installed files, programs and bus names; it imports neither half.
"""

# SPDX-License-Identifier: LGPL-2.1-or-later
# What fish offers after "sessionvirt". tests/unit/test_completions.py compares it with the command.
#
# A name of a network is data from elsewhere: fish takes the lines of a command substitution as they
# are, and escapes them on the command line.

# Whether the verb is one of the arguments; without arguments, whether there is none yet.
function __sessionvirt_verb
    set -l words (commandline -opc)
    set -e words[1]
    for word in $words
        string match -q -- '-*' $word; and continue
        contains -- $word $argv
        return
    end
    test (count $argv) -eq 0
end

# Whether the words so far are the arguments, options left out.
function __sessionvirt_words
    set -l words (commandline -opc)
    set -e words[1]
    set -l said (string match -v -- '-*' $words)
    test "$said" = "$argv"
end

# What the broker has of a type: network, bridge, direct. Not what fish would take for something else: a
# tab begins a description, and a leading ~ is not escaped. The command shows no prompt, and waits
# two seconds at most.
function __sessionvirt_names
    command sessionvirt networks --names $argv[1] </dev/null 2>/dev/null |
        string match -r '^[^~\t][^\t]*$'
end

# The PCI devices that the broker can give; their addresses are nothing else to fish.
function __sessionvirt_devices
    command sessionvirt devices --names </dev/null 2>/dev/null
end

complete -c sessionvirt -f
complete -c sessionvirt -s h -l help -d 'Show help and exit'

complete -c sessionvirt -n __sessionvirt_verb -l version -d 'Show the version and exit'
complete -c sessionvirt -n __sessionvirt_verb -a run \
    -d 'Run a virtual machine in the foreground'
complete -c sessionvirt -n __sessionvirt_verb -a plan \
    -d 'Show what running it would change on this host'
complete -c sessionvirt -n __sessionvirt_verb -a networks \
    -d 'List the networks and bridges that machines can join, or show who is on one'
complete -c sessionvirt -n __sessionvirt_verb -a devices \
    -d 'List the host\'s PCI devices, and whether a machine can have them'
complete -c sessionvirt -n __sessionvirt_verb -a leases \
    -d 'List what your running machines hold of this host'
complete -c sessionvirt -n __sessionvirt_verb -a limit \
    -d 'Show or change how much a running machine receives and sends'
complete -c sessionvirt -n __sessionvirt_verb -a reclaim \
    -d 'End a machine and take back what it has of this host'
complete -c sessionvirt -n __sessionvirt_verb -a filter \
    -d 'Show or change what a running machine may send and receive'
complete -c sessionvirt -n __sessionvirt_verb -a publish \
    -d 'Have ports of this host lead to a running machine'
complete -c sessionvirt -n __sessionvirt_verb -a unpublish \
    -d 'Have ports of this host lead to a running machine no longer'
complete -c sessionvirt -n __sessionvirt_verb -a doctor \
    -d 'Check what this host can do, and say what to do where it cannot'

complete -c sessionvirt -n '__sessionvirt_verb run plan' -F
complete -c sessionvirt -n '__sessionvirt_verb run plan' -l strict \
    -d 'Refuse a definition that is not understood fully'
complete -c sessionvirt -n '__sessionvirt_verb run plan' -s v -l verbose \
    -d 'And QEMU\'s command line'
complete -c sessionvirt -n '__sessionvirt_verb run plan' -l name -x \
    -d 'The machine\'s name'
complete -c sessionvirt -n '__sessionvirt_verb run plan' -l memory -x \
    -d 'Memory in MiB'
complete -c sessionvirt -n '__sessionvirt_verb run plan' -l vcpus -x \
    -d 'Number of processors'
complete -c sessionvirt -n '__sessionvirt_verb run plan' -l network -x \
    -a 'user none (__sessionvirt_names network)' \
    -d 'A managed network, user or none'
complete -c sessionvirt -n '__sessionvirt_verb run plan' -l bridge -x \
    -a '(__sessionvirt_names bridge)' \
    -d 'A bridge that the administrator permits'
complete -c sessionvirt -n '__sessionvirt_verb run plan' -l direct -x \
    -a '(__sessionvirt_names direct)' \
    -d 'An interface that the administrator permits'
complete -c sessionvirt -n '__sessionvirt_verb run plan' -l limit-inbound -x \
    -d 'What it receives in a second, at most'
complete -c sessionvirt -n '__sessionvirt_verb run plan' -l limit-outbound -x \
    -d 'What it sends in a second, at most'
complete -c sessionvirt -n '__sessionvirt_verb run plan' -l kernel -r -F \
    -d 'Boot this kernel instead of the disk'
complete -c sessionvirt -n '__sessionvirt_verb run plan' -l initrd -r -F \
    -d 'Its initial RAM disk'
complete -c sessionvirt -n '__sessionvirt_verb run plan' -l append -x \
    -d 'Its command line'
complete -c sessionvirt -n '__sessionvirt_verb run plan' -l pci -x -a '(__sessionvirt_devices)' \
    -d 'A PCI device of this host'
complete -c sessionvirt -n '__sessionvirt_verb run plan' -l publish -x \
    -d 'Ports of this host that lead to the machine'
complete -c sessionvirt -n '__sessionvirt_verb publish' -l interface -x \
    -d 'The machine\'s interface that they lead to'
complete -c sessionvirt -n '__sessionvirt_verb run plan' -l with-group \
    -d 'With a PCI device may go all of its isolation group'

complete -c sessionvirt -n '__sessionvirt_verb run plan filter' -l deny-outbound -x \
    -d 'What the guest may not begin'
complete -c sessionvirt -n '__sessionvirt_verb run plan filter' -l allow-outbound -x \
    -d 'The only things that it may begin'
complete -c sessionvirt -n '__sessionvirt_verb run plan filter' -l deny-inbound -x \
    -d 'What others may not begin with it'
complete -c sessionvirt -n '__sessionvirt_verb run plan filter' -l allow-inbound -x \
    -d 'The only things that they may'
complete -c sessionvirt -n '__sessionvirt_verb filter' -l interface -x \
    -d 'Which one, where there are several'
complete -c sessionvirt -n '__sessionvirt_verb filter' -l none \
    -d 'No lists any more'

complete -c sessionvirt -n '__sessionvirt_verb run' -l dry-run \
    -d 'The same as plan'
complete -c sessionvirt -n '__sessionvirt_verb run' -l console \
    -d 'The machine\'s console is on this terminal'
complete -c sessionvirt -n '__sessionvirt_verb run' -l no-console \
    -d 'Leave the terminal alone'
complete -c sessionvirt -n '__sessionvirt_verb run reclaim limit publish doctor' -l no-ask-password \
    -d 'Never ask; fail where a prompt is needed'
complete -c sessionvirt -n '__sessionvirt_verb run' -l timeout -x \
    -d 'End the machine after this many seconds'
complete -c sessionvirt -n '__sessionvirt_verb run' -s q -l quiet \
    -d 'Errors only'

complete -c sessionvirt -n '__sessionvirt_verb plan networks devices leases limit filter doctor' -l json \
    -d 'For programs: stable, versioned keys'
complete -c sessionvirt -n '__sessionvirt_verb limit' -l interface -x \
    -d 'Which one, counted from 0, or by its MAC address'
complete -c sessionvirt -n '__sessionvirt_verb limit' -l inbound -x \
    -d 'What it receives in a second, or none'
complete -c sessionvirt -n '__sessionvirt_verb limit' -l outbound -x \
    -d 'What it sends in a second, or none'
complete -c sessionvirt -n '__sessionvirt_verb networks' -l names -x -a 'network bridge direct' \
    -d 'Only the names of one type'
complete -c sessionvirt -n '__sessionvirt_verb networks' -l watch \
    -d 'Look again every second'
complete -c sessionvirt -n '__sessionvirt_words networks' \
    -a 'import export (__sessionvirt_names network) (__sessionvirt_names bridge)
        (__sessionvirt_names direct)'
complete -c sessionvirt -n '__sessionvirt_words networks import' -F
complete -c sessionvirt -n '__sessionvirt_words networks export' \
    -a '(__sessionvirt_names network) (__sessionvirt_names bridge)'
complete -c sessionvirt -n '__sessionvirt_verb devices' -l names \
    -d 'Only the addresses of what can be given to a machine'
complete -c sessionvirt -n '__sessionvirt_verb doctor' -l trace \
    -d 'Follow what the machine sends to an address'
complete -c sessionvirt -n '__sessionvirt_verb doctor' -l to -x \
    -d 'The IP address that it sends to'
complete -c sessionvirt -n '__sessionvirt_verb doctor' -l port -x \
    -d 'Only to this port'
complete -c sessionvirt -n '__sessionvirt_verb doctor' -l seconds -x \
    -d 'For so long'

#!/bin/busybox sh
# PID 1 of a guest until the real root is found. From the kernel's command line it takes
# lab.name (the host's name), lab.machine (its machine-id) and lab.run (what becomes PID 1).

say() { echo "lab: $*" >/dev/console; }
give_up() { say "no root: $*"; /bin/busybox poweroff -f; }

export PATH=/bin
/bin/busybox --install -s /bin
mount -t devtmpfs none /dev
mount -t proc none /proc
mount -t sysfs none /sys

for word in $(cat /proc/cmdline); do
    case $word in
        lab.name=*) name=${word#*=} ;;
        lab.machine=*) machine=${word#*=} ;;
        lab.run=*) run=${word#*=} ;;
    esac
done

for module in $(cat /modules); do
    modprobe "$module" || give_up "module $module"
done

# The root is the image below, and on top the guest's own disk: what a guest writes outlives a
# reboot and a power loss, as it does on a machine.
mount -t squashfs -o ro /dev/vda /lower || give_up "image"
mount -t ext4 /dev/vdd /state || give_up "disk"
mkdir -p /state/upper /state/work
mount -t overlay -o lowerdir=/lower,upperdir=/state/upper,workdir=/state/work none /root ||
    give_up "overlay"

mount -t squashfs -o ro /dev/vdb /root/opt/mdevns/deps || give_up "dependencies"
mount -t squashfs -o ro /dev/vdc /root/opt/mdevns/code || give_up "code"
mount -t tmpfs -o mode=755 none /root/run
mount -t tmpfs -o mode=1777 none /root/tmp
mkdir -p /root/run/modules /dev/pts /dev/shm
cp -a /lib/modules/. /root/run/modules/
ln -sfn /run/modules /root/usr/lib/modules
mount -t devpts none /dev/pts
mount -t tmpfs none /dev/shm

echo "$name" >/root/etc/hostname
hostname "$name"
echo "$machine" >/root/etc/machine-id
ip link set lo up
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0

mount --move /dev /root/dev
mount --move /proc /root/proc
mount --move /sys /root/sys
exec switch_root /root /usr/bin/python3 -u "$run"

#!/bin/sh
# Prepares the guest's kernel and initramfs. Nothing is installed on this machine, and no root rights are needed.
#
#   scripts/guest-image.sh OUTDIR [INIT]
#
#     OUTDIR/vmlinuz         bzImage of Debian's cloud kernel
#     OUTDIR/vmlinux         the ELF inside it, for Firecracker before 1.17
#     OUTDIR/initramfs.cpio  /init = nullspace-init, /modules = what it loads at boot, in the order of /modules/order,
#                            /lib/modules = what the kernel may ask for later, each packed with zstd, and depmod's index
#     OUTDIR/modules/        the kernel's modules of both kinds, kept so that a new init needs no new download
#
# INIT (or $NULLSPACE_INIT) is a static nullspace-init; without it the one that scripts/build.sh has built is taken.
#
# The kernel comes from the package sources that apt is set up with. Same kernel version and same init give the same
# bytes; when nothing has changed, nothing is done.
# Needs: apt, dpkg, cpio, zstd, depmod, and xz, lz4 or gzip as the kernel's compression demands; strip when it is there.
set -eu

here=$(cd "$(dirname "$0")/.." && pwd)
[ $# -ge 1 ] || { echo "usage: $0 OUTDIR [INIT]" >&2; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
init=${2:-${NULLSPACE_INIT:-$here/target/static/nullspace-init}}
meta=linux-image-cloud-amd64
# Load order: each module follows those it uses. ext4 and the virtio disk's block layer are built in.
modules="virtio_ring virtio virtio_mmio virtio_blk failover net_failover virtio_net virtio_console virtio-rng
  vsock vmw_vsock_virtio_transport_common vmw_vsock_virtio_transport overlay"
# Loaded when the kernel asks for them: what containers, VPNs, firewalls, FUSE and disk images in a sandbox need. Patterns of
# file names; what they depend on comes with them. They stay in every machine's memory, so what is large and rare is left
# out: xfs, btrfs, nfs, cifs, ceph, iscsi, bonding, openvswitch, hardware.
on_demand="nf_tables nft_* nfnetlink* nf_conntrack* nf_nat* nf_log_syslog nf_reject_* nf_defrag_* nf_tproxy_* nf_dup_*
  nf_flow_table* x_tables xt_* ip_tables iptable_* ipt_* ip6_tables ip6table_* ip6t_* arp_tables arptable_* ebtables
  ebtable_* ebt_* ip_set* ip_vs ip_vs_rr ip_vs_wrr ip_vs_sh veth bridge br_netfilter macvlan macvtap ipvlan vxlan geneve dummy
  ifb tun tap wireguard 8021q vrf ipip ip_gre gre sit ip6_tunnel fou sch_* cls_* act_* em_* tcp_bbr tls inet_diag tcp_diag
  udp_diag unix_diag netlink_diag af_packet_diag af_packet xfrm_user esp4 ah4 af_alg algif_* fuse cuse virtiofs loop nbd
  dm-mod dm-crypt dm-snapshot dm-thin-pool dm-verity squashfs erofs isofs fat vfat exfat nls_ascii nls_cp437 nls_iso8859-1 nls_utf8 autofs4 binfmt_misc zram
  ppp_generic ppp_async ppp_deflate ppp_mppe tcp_cubic crc32c* sha256* aes* chacha* poly1305* gcm ctr xts essiv configs"

die() { echo "guest-image: $*" >&2; exit 1; }
PATH=$PATH:/usr/sbin:/sbin
for tool in apt-get apt-cache dpkg-deb cpio sha256sum zstd depmod; do
  command -v "$tool" >/dev/null || die "$tool is missing (Debian packages: apt dpkg cpio coreutils zstd kmod)"
done
[ -f "$init" ] || die "no nullspace-init at $init; build it with scripts/build.sh"
number() { od -An -v -t "u$3" -j "$2" -N "$3" "$1" | tr -d ' '; } # file, offset, bytes
# One that asks for a dynamic loader (ELF: a program header of type 3) would end in a kernel panic without a word why.
at=$(number "$init" 32 8)
for _ in $(seq "$(number "$init" 56 2)"); do
  [ "$(number "$init" "$at" 4)" != 3 ] || die "$init is not static; build it with scripts/build.sh"
  at=$((at + $(number "$init" 54 2)))
done

# Puts the modules of $on_demand and what they need from ROOT into FOLDER, packed, with the index of depmod(8).
collect_on_demand() { # ROOT RELEASE FOLDER
  all=$1/lib/modules/$2
  depmod -b "$1" "$2" || die "depmod cannot read the kernel's modules"
  mkdir -p "$3/kernel"
  # Names are compared without the difference between dashes and underscores; modules.dep is `file: what it needs`.
  echo "$on_demand" | tr -s ' \n' '\n\n' | sed '/^$/d; s/[-_]/[-_]/g; s/\*/.*/g; s/^/^/; s/$/$/' >"$tmp/patterns"
  sed 's/:.*//' "$all/modules.dep" | awk -F/ '{ name = $NF; sub(/\.ko.*/, "", name); print name "\t" $0 }' >"$tmp/names"
  cut -f 1 "$tmp/names" | grep -E -f "$tmp/patterns" | LC_ALL=C sort -u >"$tmp/wanted"
  awk -F'\t' 'NR == FNR { wanted[$1]; next } $1 in wanted { print $2 }' "$tmp/wanted" "$tmp/names" >"$tmp/files"
  awk -F: 'NR == FNR { wanted[$1]; next }
    $1 in wanted { print $1; n = split($2, needs, " "); for (i = 1; i <= n; i++) print needs[i] }' \
    "$tmp/files" "$all/modules.dep" | LC_ALL=C sort -u >"$tmp/closure"
  (cd "$all" && xargs cp -t "$3/kernel") <"$tmp/closure"
  find "$3/kernel" -name '*.xz' -exec xz -d {} +
  find "$3/kernel" -name '*.gz' -exec gzip -d {} +
  find "$3/kernel" -name '*.zst' -exec zstd -d -q --rm {} +
  find "$3/kernel" -name '*.ko' -exec zstd -19 -q --rm {} +
  [ "$(wc -l <"$tmp/closure")" -gt 100 ] || die "the kernel's package lacks most modules that sandboxes need"
  cp "$all/modules.builtin" "$all/modules.builtin.modinfo" "$3/"
  : >"$3/modules.order"
  mkdir -p "$tmp/index/lib/modules"
  ln -s "$3" "$tmp/index/lib/modules/$2"
  depmod -b "$tmp/index" "$2" || die "depmod cannot index the modules"
  # Of no use to modprobe(8) and ours.
  rm -f "$3/modules.symbols" "$3/modules.symbols.bin" "$3/modules.order" "$3/modules.builtin.modinfo"
}

tmp=$(mktemp -d "$out/.work.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
trap 'exit 129' HUP INT TERM

# 1. Kernel and modules, when apt knows another version than the one that is there.
package=$(apt-cache depends --no-recommends --no-suggests "$meta" 2>/dev/null |
  sed -n 's/^ *Depends: \(linux-image-[0-9][^ ]*\)$/\1/p' | head -n 1)
version=
[ -z "$package" ] || version=$(apt-cache show --no-all-versions "$package" 2>/dev/null | sed -n 's/^Version: //p' | head -n 1)
have=$(cat "$out/kernel.version" 2>/dev/null || true)
recipe=$(sha256sum "$0" | cut -d' ' -f1)
if [ -z "$version" ]; then
  [ -n "$have" ] || die "apt knows no $meta; run apt-get update with Debian's main component"
  echo "guest-image: apt knows no $meta; keeping ${have%% recipe*}" >&2
elif [ "$have" != "$package $version recipe $recipe" ]; then
  echo "guest-image: unpacking $package $version"
  (cd "$tmp" && apt-get -q download "$package=$version" >apt.log 2>&1) || { cat "$tmp/apt.log" >&2; die "$package cannot be downloaded"; }
  dpkg-deb -x "$tmp"/*.deb "$tmp/root"
  release=${package#linux-image-}
  vmlinuz=$tmp/root/boot/vmlinuz-$release
  [ -f "$vmlinuz" ] || die "$package has no boot/vmlinuz-$release"

  # The payload's place is in the setup header (the kernel's Documentation/arch/x86/boot.rst). All formats but gzip are
  # followed by four bytes of uncompressed size.
  start=$(( ($(number "$vmlinuz" 497 1) + 1) * 512 + $(number "$vmlinuz" 584 4) ))
  length=$(number "$vmlinuz" 588 4)
  payload() { tail -c "+$((start + 1))" "$vmlinuz" | head -c "$1"; }
  case $(payload 4 | od -An -t x1 | tr -d ' ') in
    1f8b08*) tool=gzip trailer=0 ;;
    fd377a58) tool=xz trailer=4 ;;
    28b52ffd) tool=zstd trailer=4 ;;
    02214c18) tool=lz4 trailer=4 ;;
    *) die "the kernel's compression is unknown" ;;
  esac
  command -v $tool >/dev/null || die "$tool is missing: the kernel is compressed with it"
  payload $((length - trailer)) | $tool -dc >"$tmp/vmlinux" || die "the kernel cannot be uncompressed with $tool"
  [ "$(head -c 4 "$tmp/vmlinux" | od -An -t x1 | tr -d ' ')" = 7f454c46 ] || die "the kernel holds no ELF"

  mkdir "$tmp/modules"
  for module in $modules; do
    # Files spell some names with dashes where lists have underscores.
    pattern=$(echo "$module" | sed 's/[-_]/[-_]/g')
    file=$(find "$tmp/root/lib/modules/$release/kernel" -name "$pattern.ko*" | LC_ALL=C sort | head -n 1)
    case $file in
      "") die "$package has no module $module" ;;
      *.ko) cp "$file" "$tmp/modules/$module.ko" ;;
      *.xz) xz -dc "$file" >"$tmp/modules/$module.ko" ;;
      *.zst) zstd -dcq "$file" >"$tmp/modules/$module.ko" ;;
      *.gz) gzip -dc "$file" >"$tmp/modules/$module.ko" ;;
      *) die "$file is compressed in an unknown way" ;;
    esac
    echo "$module.ko" >>"$tmp/modules/order"
  done
  collect_on_demand "$tmp/root" "$release" "$tmp/modules/lib/modules/$release"
  # The version last: until it is there, all of this counts as undone.
  rm -rf "$out/kernel.version" "$out/stamp" "$out/modules"
  mv "$tmp/modules" "$out/modules"
  mv "$tmp/vmlinux" "$out/vmlinux"
  cp "$vmlinuz" "$tmp/vmlinuz" && mv "$tmp/vmlinuz" "$out/vmlinuz"
  chmod 0644 "$out/vmlinuz" "$out/vmlinux"
  echo "$package $version recipe $recipe" >"$tmp/version" && mv "$tmp/version" "$out/kernel.version"
fi

# 2. The initramfs, when kernel or init are others than last time.
stamp="$(cat "$out/kernel.version") init $(sha256sum "$init" | cut -d' ' -f1)"
if [ -f "$out/initramfs.cpio" ] && [ "$(cat "$out/stamp" 2>/dev/null || true)" = "$stamp" ]; then
  echo "guest-image: $out is up to date"
  exit 0
fi
tree=$tmp/tree
mkdir -p "$tree/dev" "$tree/proc" "$tree/sys" "$tree/newroot"
cp -R "$out/modules" "$tree/modules"
mv "$tree/modules/lib" "$tree/lib"
if command -v strip >/dev/null; then strip -o "$tree/init" "$init"; else cp "$init" "$tree/init"; fi
find "$tree" -type d -exec chmod 0755 {} +
find "$tree" -type f -exec chmod 0644 {} +
chmod 0755 "$tree/init"
find "$tree" -exec touch -h -d @0 {} +
# Uncompressed: under software emulation inflating costs more than reading.
(cd "$tree" && find . | LC_ALL=C sort | cpio -o -H newc --reproducible -R 0:0 --quiet) >"$tmp/initramfs.cpio"
mv "$tmp/initramfs.cpio" "$out/initramfs.cpio"
echo "$stamp" >"$tmp/stamp" && mv "$tmp/stamp" "$out/stamp"
echo "guest-image: $out holds vmlinuz, vmlinux and initramfs.cpio ($(wc -c <"$out/initramfs.cpio") bytes)"

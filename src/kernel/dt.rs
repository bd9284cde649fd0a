//! What the kernel takes from the device tree: memory, CPUs, initrd, boot arguments, UART, interrupt controller, PSCI.
//!
//! The tree is read once, at the start; nothing refers to its memory afterwards.

use core::fmt;

use arrayvec::ArrayVec;
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::standard::NodeStandard;
use dtoolkit::{Node, Property, ToCellInt};
use smccc::psci;

use super::mmu;
use super::percpu::MOST_CPUS;

/// How PSCI is called: `/psci/method`.
#[derive(Copy, Clone)]
pub enum Psci {
    /// By HVC: the kernel was entered at EL1.
    Hvc,
    /// By SMC: the kernel was entered at EL2.
    Smc,
    /// There is none.
    Absent,
}

impl Psci {
    /// Starts a CPU at a physical address, with this in x0.
    pub fn start_cpu(self, affinity: u64, entry: u64, argument: u64) -> Result<(), psci::Error> {
        match self {
            Self::Hvc => psci::cpu_on::<smccc::Hvc>(affinity, entry, argument),
            Self::Smc => psci::cpu_on::<smccc::Smc>(affinity, entry, argument),
            Self::Absent => Err(psci::Error::NotSupported),
        }
    }
}

impl fmt::Display for Psci {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hvc => "HVC",
            Self::Smc => "SMC",
            Self::Absent => "nothing",
        })
    }
}

/// Which interrupt controller there is.
#[derive(Copy, Clone, Eq, PartialEq)]
pub enum GicVersion {
    /// A GICv2: a distributor, and the CPUs' interfaces, each at the same address.
    V2,
    /// A GICv3: a distributor, and the redistributors, one after the other.
    V3,
}

/// The interrupt controller: physical addresses and lengths of its registers.
#[derive(Copy, Clone)]
pub struct Gic {
    /// Which one.
    pub version: GicVersion,
    /// The distributor's, then the others.
    pub registers: [(u64, u64); 2],
}

impl Gic {
    fn of(tree: &Fdt<'_>) -> Option<Self> {
        let root = tree.root();
        let find = |name| root.find_compatible(name).next();
        let (version, node) = find("arm,gic-v3")
            .map(|node| (GicVersion::V3, node))
            .or_else(|| Some((GicVersion::V2, find("arm,cortex-a15-gic").or_else(|| find("arm,gic-400"))?)))?;
        let mut reg = node.reg().ok()??.filter_map(|reg| Some((reg.address().ok()?, reg.size().ok()?)));
        Some(Self { version, registers: [reg.next()?, reg.next()?] })
    }
}

/// Longest `/chosen/bootargs` that is kept.
const BOOT_ARGS_BYTES: usize = 256;

/// What the device tree says.
pub struct Tree {
    /// Physical start and length of RAM: the lowest run.
    pub ram: (u64, u64),
    /// Physical start and end of the initrd.
    pub initrd: Option<(u64, u64)>,
    /// The CPUs' affinities, as MPIDR_EL1 has them; of more than can be used, the first ones.
    pub cpus: ArrayVec<u64, MOST_CPUS>,
    /// How many CPUs there are.
    pub cpus_present: usize,
    /// Physical address of the PL011.
    pub uart: u64,
    /// The interrupt controller.
    pub interrupts: Option<Gic>,
    /// The way to PSCI.
    pub psci: Psci,
    /// `/chosen/rng-seed`, its first 8 bytes; 0 if there is none.
    pub seed: u64,
    boot_args: [u8; BOOT_ARGS_BYTES],
    boot_args_used: usize,
}

impl Tree {
    /// Reads the tree at a physical address.
    ///
    /// # Safety
    /// The linear map shows the address, and its header's length of bytes from there.
    // Not inlined: see `check_cpu` in kmain.rs.
    #[inline(never)]
    pub unsafe fn read(physical: u64) -> Result<Self, &'static str> {
        if physical == 0 || !physical.is_multiple_of(8) {
            return Err("no address was passed");
        }
        let header = mmu::linear(physical);
        // SAFETY: the caller's promise; magic number and total length are the first two words.
        let (magic, bytes) = unsafe {
            let words = header.cast::<u32>();
            (u32::from_be(words.read()), u32::from_be(words.add(1).read()))
        };
        if magic != 0xd00d_feed {
            return Err("wrong magic number");
        }
        // SAFETY: the caller's promise.
        let blob = unsafe { core::slice::from_raw_parts(header, bytes as usize) };
        let fdt = Fdt::new(blob).map_err(|_| "it does not parse")?;

        let memory = fdt.memory().map_err(|_| "no memory")?;
        let ram = first_reg(&memory).ok_or("no memory")?;
        let all_cpus = fdt.cpus().map_err(|_| "no CPUs")?;
        let mut cpus = ArrayVec::new();
        let mut cpus_present = 0;
        for cpu in all_cpus.cpus() {
            let mut ids = cpu.ids().map_err(|_| "a CPU without a number")?;
            let affinity = ids.next().and_then(|id| id.to_int().ok()).ok_or("a CPU without a number")?;
            cpus_present += 1;
            let _ = cpus.try_push(affinity);
        }
        let chosen = fdt.find_node("/chosen").ok_or("no /chosen")?;
        let number = |name: &str| chosen.property(name).and_then(|property| be_number(property.value()));
        let initrd = number("linux,initrd-start").zip(number("linux,initrd-end")).filter(|(start, end)| start < end);
        let seed = chosen.property("rng-seed").and_then(|seed| be_number(seed.value().get(..8)?)).unwrap_or(0);

        let path = chosen.property("stdout-path").ok_or("no console")?;
        let path = text(path.value()).split(':').next().unwrap_or("");
        let uart = fdt.find_node(path).as_ref().and_then(first_reg).ok_or("no console")?.0;

        let psci = match fdt.find_node("/psci").as_ref().and_then(|node| node.property("method")) {
            Some(method) if text(method.value()) == "hvc" => Psci::Hvc,
            Some(method) if text(method.value()) == "smc" => Psci::Smc,
            _ => Psci::Absent,
        };

        let mut boot_args = [0; BOOT_ARGS_BYTES];
        let mut boot_args_used = 0;
        if let Some(args) = chosen.property("bootargs") {
            let args = text(args.value()).as_bytes();
            boot_args_used = args.len().min(BOOT_ARGS_BYTES);
            boot_args[..boot_args_used].copy_from_slice(&args[..boot_args_used]);
        }
        let interrupts = Gic::of(&fdt);
        Ok(Self { ram, initrd, cpus, cpus_present, uart, interrupts, psci, seed, boot_args, boot_args_used })
    }

    /// `/chosen/bootargs`.
    pub fn boot_args(&self) -> &str {
        core::str::from_utf8(&self.boot_args[..self.boot_args_used]).unwrap_or("")
    }

    /// The firmware's PSCI version, as text for the log.
    pub fn psci_version(&self) -> impl fmt::Display {
        struct Version(Option<psci::Version>);
        impl fmt::Display for Version {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match &self.0 {
                    Some(version) => write!(f, "{}.{}", version.major, version.minor),
                    None => f.write_str("none"),
                }
            }
        }
        Version(match self.psci {
            Psci::Hvc => psci::version::<smccc::Hvc>().ok(),
            Psci::Smc => psci::version::<smccc::Smc>().ok(),
            Psci::Absent => None,
        })
    }
}

/// The first address and length of a node.
fn first_reg(node: &FdtNode<'_>) -> Option<(u64, u64)> {
    let reg = node.reg().ok()??.next()?;
    Some((reg.address().ok()?, reg.size().ok()?))
}

/// A big-endian number of 4 or 8 bytes.
fn be_number(bytes: &[u8]) -> Option<u64> {
    match bytes.len() {
        4 => bytes.try_into().ok().map(|bytes| u32::from_be_bytes(bytes).into()),
        8 => bytes.try_into().ok().map(u64::from_be_bytes),
        _ => None,
    }
}

/// A string property without its final NUL.
fn text(bytes: &[u8]) -> &str {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    core::str::from_utf8(&bytes[..end]).unwrap_or("")
}

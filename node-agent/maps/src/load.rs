//! Loading: adopt the pinned maps, load the programs, keep pinned programs that are the same.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{Ebpf, EbpfLoader, programs::ProgramError};
use ebpf_abi::{ConnTable, buckets_for, fill_words_for, maps as names, used_words_for};

use crate::{
    Error, MapLayout, Maps, OBJECT, Program, adopt, identity::Identity, object, resize, sys,
    sys::Access,
};

/// The loaded dataplane. Dropping it detaches nothing: maps, programs and links stay pinned and keep forwarding.
#[derive(Debug)]
pub struct Dataplane {
    pub(crate) pin_dir: PathBuf,
    pub(crate) maps: Maps,
    pub(crate) programs: BTreeMap<Program, Loaded>,
}

/// How to load.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Sizes of maps by name, in place of the object's. A pinned map of another size is copied, see
    /// [`Dataplane::finish_resize`]; a connection table keeps its size. The index of a connection table follows the number
    /// of its connections, which is a multiple of 64 and at most 2^20.
    pub max_entries: BTreeMap<&'static str, u32>,
    /// Read the records that the programs write with aya-log and hand them to the `log` facade. Does nothing, with a
    /// warning, when the object was built without its `log` feature.
    pub log: bool,
}

#[derive(Debug)]
pub(crate) struct Loaded {
    pub fd: OwnedFd,
    pub id: u32,
    pub identity: Identity,
}

impl Options {
    /// The sizes of all maps that do not have the object's.
    pub(crate) fn sizes(&self) -> Result<BTreeMap<&'static str, u32>, Error> {
        let mut sizes = self.max_entries.clone();
        for (conns, index, fill, used) in [
            (
                names::CONN4,
                names::CONN_INDEX4,
                names::CONN_FILL4,
                names::CONN_USED4,
            ),
            (
                names::CONN6,
                names::CONN_INDEX6,
                names::CONN_FILL6,
                names::CONN_USED6,
            ),
        ] {
            let Some(&size) = self.max_entries.get(conns) else {
                continue;
            };
            if !ConnTable::fits(size) {
                return Err(Error::ConnTableSize { map: conns, size });
            }
            sizes.insert(index, buckets_for(size));
            sizes.insert(fill, fill_words_for(size));
            sizes.insert(used, used_words_for(size));
        }
        Ok(sizes)
    }
}

impl Dataplane {
    /// Loads the object, with its maps, programs and (when they are attached) links pinned in `pin_dir`, usually
    /// [`ebpf_abi::maps::PIN_DIR`].
    ///
    /// Maps that are pinned there are adopted with what they hold; programs that are pinned there and do the same as
    /// the object's are kept. When all of them come from this very object, nothing is loaded at all.
    ///
    /// # Errors
    ///
    /// When `pin_dir` is not on a bpffs, when a pinned map has another layout than the object wants or holds more than
    /// its new size, when the kernel's verifier refuses a program.
    pub fn open(pin_dir: &Path, options: &Options) -> Result<Self, Error> {
        make_pin_dirs(pin_dir)?;
        let options = &Options {
            max_entries: check_layouts(pin_dir, options)?,
            ..options.clone()
        };
        // The log is read from maps that only loading makes.
        if !options.log
            && let Some(adopted) = adopt::adopt(pin_dir)?
        {
            resize::copy(pin_dir, &adopted.maps)?;
            tracing::info!(pin_dir = %pin_dir.display(), "maps and programs adopted");
            return Ok(adopted);
        }
        let loaded = Self::load(pin_dir, options)?;
        tracing::info!(pin_dir = %pin_dir.display(), "programs loaded");
        Ok(loaded)
    }

    fn load(pin_dir: &Path, options: &Options) -> Result<Self, Error> {
        let mut ebpf = load_object(pin_dir, options)?;
        Maps::prepare(pin_dir)?;
        let maps = Maps::open(pin_dir, Access::ReadWrite)?;
        resize::copy(pin_dir, &maps)?;
        let pinned_maps =
            map_ids(&maps).map_err(file_error("read the ids of the maps in", pin_dir))?;
        // From here to the end the pins may be of two objects.
        adopt::remove_marks(pin_dir)?;
        let mut programs = BTreeMap::new();
        for program in Program::ALL {
            let fd = load_program(&mut ebpf, program)?;
            let loaded = pin_program(pin_dir, program, fd, &pinned_maps)?;
            programs.insert(program, loaded);
        }
        adopt::set_mark(pin_dir)?;
        if options.log {
            start_log(&mut ebpf)?;
        }
        Ok(Self {
            pin_dir: pin_dir.into(),
            maps,
            programs,
        })
    }

    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    /// Gives up the maps in whose place others of a new size came; only to be called once every program is attached
    /// that was attached before. The names of these maps.
    ///
    /// # Errors
    ///
    /// When a map cannot be read or written, or its pin not be removed.
    pub fn finish_resize(&self) -> Result<Vec<&'static str>, Error> {
        resize::finish(&self.pin_dir, &self.maps)
    }

    pub fn pin_dir(&self) -> &Path {
        &self.pin_dir
    }

    pub(crate) fn program(&self, program: Program) -> &Loaded {
        self.programs
            .get(&program)
            .expect("open loads every program of Program::ALL")
    }

    /// Whether the program with this id does the same as the one that was loaded.
    pub(crate) fn is_same(&self, program: Program, id: u32) -> io::Result<bool> {
        let loaded = self.program(program);
        if loaded.id == id {
            return Ok(true);
        }
        let pinned_maps = map_ids(&self.maps)?;
        let other = sys::prog_by_id(id)?;
        Ok(Identity::of(other.as_fd(), &pinned_maps)?.same(&loaded.identity))
    }
}

impl Loaded {
    pub fn new(fd: OwnedFd, pinned_maps: &[u32]) -> io::Result<Self> {
        let id = sys::prog_info(fd.as_fd())?.id;
        let identity = Identity::of(fd.as_fd(), pinned_maps)?;
        Ok(Self { fd, id, identity })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The ids of the pinned maps.
pub(crate) fn map_ids(maps: &Maps) -> io::Result<Vec<u32>> {
    maps.all()
        .map(|map| sys::map_info(map.fd()).map(|(id, _)| id))
        .collect()
}

pub(crate) fn file_error(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_path_buf();
    move |source| Error::File {
        action,
        path,
        source,
    }
}

pub(crate) fn make_pin_dirs(pin_dir: &Path) -> Result<(), Error> {
    let existing = pin_dir
        .ancestors()
        .find(|dir| dir.exists())
        .unwrap_or(Path::new("/"));
    if !sys::is_bpffs(existing).map_err(file_error("look at", existing))? {
        return Err(Error::NotBpffs {
            path: pin_dir.into(),
        });
    }
    for dir in [
        pin_dir.to_path_buf(),
        programs_dir(pin_dir),
        links_dir(pin_dir),
    ] {
        fs::create_dir_all(&dir).map_err(file_error("create", &dir))?;
    }
    Ok(())
}

pub(crate) fn programs_dir(pin_dir: &Path) -> PathBuf {
    pin_dir.join("programs")
}

pub(crate) fn links_dir(pin_dir: &Path) -> PathBuf {
    pin_dir.join("links")
}

/// Compares what is pinned with what the object wants, since aya adopts a pin without looking, and puts aside what gets
/// another size. The sizes that hold then.
fn check_layouts(pin_dir: &Path, options: &Options) -> Result<BTreeMap<&'static str, u32>, Error> {
    let mut sizes = options.sizes()?;
    let declared = object::declared_maps()?;
    for &name in names::ALL {
        let mut wanted: MapLayout = *declared.get(name).ok_or_else(|| Error::NotInObject {
            what: "map",
            name: name.into(),
        })?;
        if let Some(&max_entries) = sizes.get(name) {
            wanted.max_entries = max_entries;
        }
        let path = pin_dir.join(name);
        let Some(pinned) = resize::pinned_layout(&path)?.filter(|pinned| *pinned != wanted) else {
            continue;
        };
        let resized = MapLayout {
            max_entries: wanted.max_entries,
            ..pinned
        };
        if resized != wanted {
            return Err(Error::LayoutDiffers {
                map: name,
                path,
                pinned,
                wanted,
            });
        }
        if let Some(reason) = resize::why_not(pin_dir, name) {
            tracing::warn!(
                map = name,
                size = pinned.max_entries,
                wanted = wanted.max_entries,
                reason,
                "keeps its size"
            );
            sizes.insert(name, pinned.max_entries);
            continue;
        }
        resize::set_aside(pin_dir, name, &wanted)?;
        tracing::info!(
            map = name,
            from = pinned.max_entries,
            to = wanted.max_entries,
            "gets another size"
        );
    }
    Ok(sizes)
}

fn load_object(pin_dir: &Path, options: &Options) -> Result<Ebpf, Error> {
    let mut loader = EbpfLoader::new();
    for &name in names::ALL {
        loader.map_pin_path(name, pin_dir.join(name));
    }
    for (name, size) in options.sizes()? {
        loader.map_max_entries(name, size);
    }
    loader
        .load(OBJECT)
        .map_err(|source| Error::Object { source })
}

/// The verifier gives up when the process gets a signal; libbpf asks it as often.
const LOAD_ATTEMPTS: u32 = 5;

fn was_interrupted(error: &ProgramError) -> bool {
    matches!(error, ProgramError::LoadError { io_error, .. } if io_error.raw_os_error() == Some(libc::EAGAIN))
}

pub(crate) fn load_program(ebpf: &mut Ebpf, program: Program) -> Result<OwnedFd, Error> {
    let missing = || Error::NotInObject {
        what: "program",
        name: program.name().into(),
    };
    let failed = |source| Error::LoadProgram { program, source };
    let loaded = ebpf.program_mut(program.name()).ok_or_else(missing)?;
    let mut attempt = 1;
    loop {
        let result = match loaded {
            aya::programs::Program::SchedClassifier(classifier) => classifier.load(),
            aya::programs::Program::Xdp(xdp) => xdp.load(),
            aya::programs::Program::CgroupSockAddr(sock_addr) => sock_addr.load(),
            aya::programs::Program::CgroupSock(sock) => sock.load(),
            _ => return Err(missing()),
        };
        match result {
            Err(error) if was_interrupted(&error) && attempt < LOAD_ATTEMPTS => attempt += 1,
            result => break result.map_err(failed)?,
        }
    }
    let fd = loaded.fd().map_err(failed)?;
    fd.as_fd()
        .try_clone_to_owned()
        .map_err(|source| Error::Program {
            action: "keep",
            program,
            source,
        })
}

/// Keeps the pinned program if it does the same as the new one, else puts the new one in its place.
fn pin_program(
    pin_dir: &Path,
    program: Program,
    new: OwnedFd,
    pinned_maps: &[u32],
) -> Result<Loaded, Error> {
    let failed = |action| {
        move |source| Error::Program {
            action,
            program,
            source,
        }
    };
    let new = Loaded::new(new, pinned_maps).map_err(failed("read the identity of"))?;

    let path = programs_dir(pin_dir).join(program.name());
    let old = sys::obj_get(&path, Access::ReadWrite).map_err(failed("open pinned"))?;
    if let Some(old) = old {
        let old = Loaded::new(old, pinned_maps).map_err(failed("read the identity of pinned"))?;
        if old.identity.same(&new.identity) {
            return Ok(old);
        }
    }
    // By way of a second name, so that the pin is never missing. The bpffs allows no dot in a name.
    let temporary = programs_dir(pin_dir).join(format!("{program}_new"));
    if temporary.exists() {
        fs::remove_file(&temporary).map_err(failed("remove a left-over pin of"))?;
    }
    sys::obj_pin(new.fd(), &temporary).map_err(failed("pin"))?;
    fs::rename(&temporary, &path).map_err(failed("replace the pin of"))?;
    Ok(new)
}

/// Reads the programs' log on a thread that lives as long as the process.
fn start_log(ebpf: &mut Ebpf) -> Result<(), Error> {
    let mut logger = match aya_log::EbpfLogger::init(ebpf) {
        Ok(logger) => logger,
        Err(error) => {
            tracing::warn!(%error, "the eBPF object writes no log: build it with the feature `log`");
            return Ok(());
        }
    };
    std::thread::Builder::new()
        .name("ebpf-log".into())
        .spawn(move || {
            while sys::wait_readable(logger.as_fd()).is_ok() {
                logger.flush();
            }
        })
        .map_err(|source| Error::Log { source })?;
    Ok(())
}

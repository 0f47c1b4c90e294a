package vfs

// OpKind is the kind of an operation that Inject's hook sees.
type OpKind uint8

// Operation kinds. Closing, and reading of sizes and names, is never intercepted.
const (
	OpCreate OpKind = iota + 1
	OpOpen
	OpRemove
	OpRename
	OpSyncDir
	OpMkdir
	OpRead
	OpWrite
	OpZeroFill
	OpSync
	OpTruncate
	OpAllocate
)

// String returns the operation's name.
func (k OpKind) String() string {
	names := [...]string{
		"none", "create", "open", "remove", "rename", "syncdir", "mkdir",
		"read", "write", "zerofill", "sync", "truncate", "allocate",
	}
	if int(k) >= len(names) {
		return "unknown"
	}
	return names[k]
}

// Mutates reports whether the operation changes what a disk holds or what of it
// is durable.
func (k OpKind) Mutates() bool { return k != OpOpen && k != OpRead && k != 0 }

// Op is an operation that is about to happen.
type Op struct {
	Kind     OpKind
	Path     string
	To       string // rename only
	Off, Len int64  // bytes; read, write, zerofill; for truncate and allocate Len is the new size
}

// Inject returns fsys with hook called before every operation. If the hook
// returns an error the operation isn't done and fails with that error. The hook
// is called concurrently if fsys is used so, and may use fsys itself.
func Inject(fsys FS, hook func(Op) error) FS { return &injectFS{FS: fsys, hook: hook} }

type injectFS struct {
	FS
	hook func(Op) error
}

func (i *injectFS) wrap(f File, path string, err error) (File, error) {
	if err != nil {
		return nil, err
	}
	return &injectFile{File: f, path: path, hook: i.hook}, nil
}

func (i *injectFS) Create(path string) (File, error) {
	if err := i.hook(Op{Kind: OpCreate, Path: path}); err != nil {
		return nil, err
	}
	f, err := i.FS.Create(path)
	return i.wrap(f, path, err)
}

func (i *injectFS) Open(path string) (File, error) {
	if err := i.hook(Op{Kind: OpOpen, Path: path}); err != nil {
		return nil, err
	}
	f, err := i.FS.Open(path)
	return i.wrap(f, path, err)
}

func (i *injectFS) OpenReadWrite(path string) (File, error) {
	if err := i.hook(Op{Kind: OpOpen, Path: path}); err != nil {
		return nil, err
	}
	f, err := i.FS.OpenReadWrite(path)
	return i.wrap(f, path, err)
}

func (i *injectFS) Remove(path string) error {
	if err := i.hook(Op{Kind: OpRemove, Path: path}); err != nil {
		return err
	}
	return i.FS.Remove(path)
}

func (i *injectFS) Rename(from, to string) error {
	if err := i.hook(Op{Kind: OpRename, Path: from, To: to}); err != nil {
		return err
	}
	return i.FS.Rename(from, to)
}

func (i *injectFS) SyncDir(dir string) error {
	if err := i.hook(Op{Kind: OpSyncDir, Path: dir}); err != nil {
		return err
	}
	return i.FS.SyncDir(dir)
}

func (i *injectFS) MkdirAll(dir string) error {
	if err := i.hook(Op{Kind: OpMkdir, Path: dir}); err != nil {
		return err
	}
	return i.FS.MkdirAll(dir)
}

// injectFile asks for each operation on an open file. Its path is the one that
// it was opened by, also after a rename.
type injectFile struct {
	File
	path string
	hook func(Op) error
}

func (f *injectFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.hook(Op{Kind: OpRead, Path: f.path, Off: off, Len: int64(len(p))}); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, off)
}

func (f *injectFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.hook(Op{Kind: OpWrite, Path: f.path, Off: off, Len: int64(len(p))}); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, off)
}

func (f *injectFile) WriteVAt(bufs [][]byte, off int64) (int64, error) {
	var n int64
	for _, b := range bufs {
		n += int64(len(b))
	}
	if err := f.hook(Op{Kind: OpWrite, Path: f.path, Off: off, Len: n}); err != nil {
		return 0, err
	}
	return f.File.WriteVAt(bufs, off)
}

func (f *injectFile) ZeroFill(off, n int64) error {
	if err := f.hook(Op{Kind: OpZeroFill, Path: f.path, Off: off, Len: n}); err != nil {
		return err
	}
	return f.File.ZeroFill(off, n)
}

func (f *injectFile) SyncData() error {
	if err := f.hook(Op{Kind: OpSync, Path: f.path}); err != nil {
		return err
	}
	return f.File.SyncData()
}

func (f *injectFile) Sync() error {
	if err := f.hook(Op{Kind: OpSync, Path: f.path}); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f *injectFile) Truncate(size int64) error {
	if err := f.hook(Op{Kind: OpTruncate, Path: f.path, Len: size}); err != nil {
		return err
	}
	return f.File.Truncate(size)
}

func (f *injectFile) Allocate(size int64) error {
	if err := f.hook(Op{Kind: OpAllocate, Path: f.path, Len: size}); err != nil {
		return err
	}
	return f.File.Allocate(size)
}

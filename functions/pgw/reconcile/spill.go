package reconcile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"os"
	"slices"
)

// The sizes of a spill. All its buffers together take at most buckets × blockSize bytes, and a ledger
// whose buckets stay smaller than a block needs no file.
const (
	buckets   = 1024
	blockSize = 8 << 10
)

// seed makes the hashes of this process unpredictable, so that nobody can write data that collides.
var seed = maphash.MakeSeed()

func bucketOf(key string) int { return int(maphash.String(seed, key) % buckets) }

// spill keeps records in buckets on disk, because the records of a large ledger do not fit into memory.
// Records with one key are in one bucket. The file is written in blocks; each block belongs to one
// bucket, and continues the bucket's block before it.
type spill struct {
	dir    string
	file   *os.File // nil until the first block is full
	blocks uint32   // in the file
	of     [buckets]struct {
		blocks []uint32
		buffer []byte // what follows the blocks
	}
}

// add adds a record to the bucket of its key.
func (s *spill) add(key string, record []byte) error {
	b := &s.of[bucketOf(key)]
	b.buffer = binary.AppendUvarint(b.buffer, uint64(len(record)))
	b.buffer = append(b.buffer, record...)
	for len(b.buffer) >= blockSize {
		if err := s.open(); err != nil {
			return err
		}
		if _, err := s.file.WriteAt(b.buffer[:blockSize], int64(s.blocks)*blockSize); err != nil {
			return fmt.Errorf("write a temporary file: %w", err)
		}
		b.blocks = append(b.blocks, s.blocks)
		s.blocks++
		b.buffer = append(b.buffer[:0], b.buffer[blockSize:]...)
	}
	return nil
}

func (s *spill) open() error {
	if s.file != nil {
		return nil
	}
	f, err := os.CreateTemp(s.dir, "pgw-reconcile-")
	if err != nil {
		return fmt.Errorf("open a temporary file (TMPDIR names its directory): %w", err)
	}
	s.file = f
	return nil
}

// each passes the records of a bucket to take, in the order in which they were added. take must not keep
// the bytes.
func (s *spill) each(bucket int, take func(record []byte) error) error {
	from := &bucketReader{spill: s, bucket: bucket}
	var record []byte
	for {
		size, err := binary.ReadUvarint(from)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read a temporary file: %w", err)
		}
		record = slices.Grow(record[:0], int(size))[:size]
		if _, err := io.ReadFull(from, record); err != nil {
			return fmt.Errorf("read a temporary file: %w", err)
		}
		if err := take(record); err != nil {
			return err
		}
	}
}

// close deletes the file.
func (s *spill) close() error {
	if s.file == nil {
		return nil
	}
	return errors.Join(s.file.Close(), os.Remove(s.file.Name()))
}

// bucketReader reads the bytes of a bucket.
type bucketReader struct {
	spill  *spill
	bucket int
	next   int // of the bucket's blocks; the buffer comes after the last one
	rest   []byte
	block  []byte
}

func (r *bucketReader) fill() error {
	of := &r.spill.of[r.bucket]
	switch {
	case len(r.rest) > 0:
		return nil
	case r.next < len(of.blocks):
		if r.block == nil {
			r.block = make([]byte, blockSize)
		}
		if _, err := r.spill.file.ReadAt(r.block, int64(of.blocks[r.next])*blockSize); err != nil {
			return err
		}
		r.rest = r.block
	case r.next == len(of.blocks) && len(of.buffer) > 0:
		r.rest = of.buffer
	default:
		return io.EOF
	}
	r.next++
	return nil
}

// Read implements io.Reader.
func (r *bucketReader) Read(into []byte) (int, error) {
	if err := r.fill(); err != nil {
		return 0, err
	}
	n := copy(into, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// ReadByte implements io.ByteReader.
func (r *bucketReader) ReadByte() (byte, error) {
	if err := r.fill(); err != nil {
		return 0, err
	}
	b := r.rest[0]
	r.rest = r.rest[1:]
	return b, nil
}

// pack returns a record: a value of fixed size, and texts.
func pack(fixed any, texts ...string) ([]byte, error) {
	record, err := binary.Append(make([]byte, 0, 256), binary.LittleEndian, fixed)
	if err != nil {
		return nil, err
	}
	for _, text := range texts {
		record = append(binary.AppendUvarint(record, uint64(len(text))), text...)
	}
	return record, nil
}

// unpack reads what pack wrote.
func unpack(record []byte, fixed any, texts ...*string) error {
	n, err := binary.Decode(record, binary.LittleEndian, fixed)
	if err != nil {
		return err
	}
	record = record[n:]
	for _, text := range texts {
		size, n := binary.Uvarint(record)
		if n <= 0 || uint64(len(record)-n) < size {
			return io.ErrUnexpectedEOF
		}
		*text = string(record[n : n+int(size)])
		record = record[n+int(size):]
	}
	return nil
}

// Command check_log checks an exported log with the Go team's note and tlog packages: it shares no line with the
// service. Usage: check_log DIR POLICY. Exit 0 good, 1 anything else; the first fault is printed.
package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const height = 8
const leafSize = 112

// key is a verifier of a log (algorithm 1) or a witness (algorithm 4, c2sp.org/tlog-cosignature).
type key struct {
	name   string
	hash   uint32
	alg    byte
	public ed25519.PublicKey
}

func (k *key) Name() string    { return k.name }
func (k *key) KeyHash() uint32 { return k.hash }
func (k *key) Verify(msg, sig []byte) bool {
	if k.alg == 1 {
		return ed25519.Verify(k.public, msg, sig)
	}
	if len(sig) != 8+ed25519.SignatureSize {
		return false
	}
	seen := binary.BigEndian.Uint64(sig)
	signed := append([]byte(fmt.Sprintf("cosignature/v1\ntime %d\n", seen)), msg...)
	return ed25519.Verify(k.public, signed, sig[8:])
}

func parseKey(text string, alg byte) (*key, error) {
	parts := strings.SplitN(text, "+", 3)
	if len(parts) != 3 {
		return nil, errors.New("a malformed key")
	}
	raw, err := base64.StdEncoding.DecodeString(parts[2])
	if err != nil || len(raw) != 33 || raw[0] != alg {
		return nil, errors.New("a key of another kind")
	}
	sum := sha256.Sum256(append([]byte(parts[0]+"\n"), raw...))
	hash := binary.BigEndian.Uint32(sum[:])
	if fmt.Sprintf("%08x", hash) != parts[1] {
		return nil, errors.New("a key whose id is not its own")
	}
	return &key{parts[0], hash, alg, ed25519.PublicKey(raw[1:])}, nil
}

type policy struct {
	log       *key
	witnesses map[string]*key
	need      int
}

// parsePolicy reads one log, witnesses, and one group of them that is the quorum.
func parsePolicy(data []byte) (*policy, error) {
	p := &policy{witnesses: map[string]*key{}, need: -1}
	group := ""
	for _, line := range strings.Split(string(data), "\n") {
		words := strings.Fields(line)
		var err error
		switch {
		case len(words) == 0:
		case words[0] == "log" && len(words) >= 2:
			p.log, err = parseKey(words[1], 1)
		case words[0] == "witness" && len(words) >= 3:
			p.witnesses[words[1]], err = parseKey(words[2], 4)
		case words[0] == "group" && len(words) >= 4:
			group = words[1]
			p.need, err = strconv.Atoi(words[2])
			if len(words)-3 != len(p.witnesses) {
				err = errors.New("a group of other witnesses")
			}
		case words[0] == "quorum" && len(words) == 2 && words[1] == group:
		default:
			err = errors.New("a policy line that is not understood: " + line)
		}
		if err != nil {
			return nil, err
		}
	}
	if p.log == nil || p.need < 1 {
		return nil, errors.New("a policy without log or quorum")
	}
	return p, nil
}

// open returns the tree of a checkpoint that the log and a quorum signed; without quorum if that is not asked for.
func (p *policy) open(msg []byte, quorum bool) (tlog.Tree, error) {
	verifiers := []note.Verifier{p.log}
	for _, w := range p.witnesses {
		verifiers = append(verifiers, w)
	}
	n, err := note.Open(msg, note.VerifierList(verifiers...))
	if err != nil {
		return tlog.Tree{}, err
	}
	signed := map[string]bool{}
	for _, s := range n.Sigs {
		signed[s.Name] = true
	}
	if !signed[p.log.name] {
		return tlog.Tree{}, errors.New("not signed by the log")
	}
	if quorum && len(signed)-1 < p.need {
		return tlog.Tree{}, errors.New("no quorum")
	}
	lines := strings.Split(n.Text, "\n")
	if len(lines) != 4 || lines[0] != p.log.name {
		return tlog.Tree{}, errors.New("no checkpoint of this log")
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil {
		return tlog.Tree{}, err
	}
	root, err := tlog.ParseHash(lines[2])
	return tlog.Tree{N: size, Hash: root}, err
}

type files struct{ dir string }

func (f files) Height() int { return height }
func (f files) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var found [][]byte
	for _, t := range tiles {
		data, err := os.ReadFile(filepath.Join(f.dir, strings.Replace(t.Path(), "tile/8/", "tile/", 1)))
		if err != nil {
			return nil, err
		}
		found = append(found, data)
	}
	return found, nil
}
func (f files) SaveTiles([]tlog.Tile, [][]byte) {}

// entries checks every leaf against the hash that the checkpoint's tree has at its place.
func entries(dir string, tree tlog.Tree, hashes tlog.HashReader) error {
	for first := int64(0); first < tree.N; first += 256 {
		width := tree.N - first
		if width > 256 {
			width = 256
		}
		tile := tlog.Tile{H: height, L: 0, N: first / 256, W: int(width)}
		path := strings.Replace(tile.Path(), "tile/8/0/", "tile/entries/", 1)
		bundle, err := os.ReadFile(filepath.Join(dir, path))
		if err != nil {
			return err
		}
		var indexes []int64
		for n := int64(0); n < width; n++ {
			indexes = append(indexes, tlog.StoredHashIndex(0, first+n))
		}
		wanted, err := hashes.ReadHashes(indexes)
		if err != nil {
			return fmt.Errorf("leaves from %d: %w", first, err)
		}
		for n := int64(0); n < width; n++ {
			if len(bundle) < 2+leafSize || binary.BigEndian.Uint16(bundle) != leafSize {
				return fmt.Errorf("leaf %d is not whole", first+n)
			}
			if tlog.RecordHash(bundle[2:2+leafSize]) != wanted[n] {
				return fmt.Errorf("leaf %d is not the one in the tree", first+n)
			}
			bundle = bundle[2+leafSize:]
		}
		if len(bundle) != 0 {
			return fmt.Errorf("%s has more than its leaves", path)
		}
	}
	return nil
}

func receipt(p *policy, data []byte) error {
	head, msg, ok := bytes.Cut(data, []byte("\n\n"))
	lines := strings.Split(string(head), "\n")
	if !ok || len(lines) < 3 || lines[0] != "c2sp.org/tlog-proof@v1" {
		return errors.New("no receipt")
	}
	leaf, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(lines[1], "extra "))
	if err != nil {
		return err
	}
	index, err := strconv.ParseInt(strings.TrimPrefix(lines[2], "index "), 10, 64)
	if err != nil {
		return err
	}
	var proof tlog.RecordProof
	for _, line := range lines[3:] {
		hash, err := tlog.ParseHash(line)
		if err != nil {
			return err
		}
		proof = append(proof, hash)
	}
	tree, err := p.open(msg, true)
	if err != nil {
		return err
	}
	return tlog.CheckRecord(proof, tree.N, tree.Hash, index, tlog.RecordHash(leaf))
}

func check(dir, policyFile string) error {
	data, err := os.ReadFile(policyFile)
	if err != nil {
		return err
	}
	p, err := parsePolicy(data)
	if err != nil {
		return err
	}
	msg, err := os.ReadFile(filepath.Join(dir, "checkpoint"))
	if err != nil {
		return err
	}
	tree, err := p.open(msg, true)
	if err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	hashes := tlog.TileHashReader(tree, files{dir})
	if err := entries(dir, tree, hashes); err != nil {
		return err
	}
	older, _ := filepath.Glob(filepath.Join(dir, "checkpoint.*"))
	for _, path := range older {
		msg, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		old, err := p.open(msg, false)
		if err != nil {
			return fmt.Errorf("%s: %w", filepath.Base(path), err)
		}
		proof, err := tlog.ProveTree(tree.N, old.N, hashes)
		if err == nil {
			err = tlog.CheckTree(proof, tree.N, tree.Hash, old.N, old.Hash)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", filepath.Base(path), err)
		}
	}
	receipts, _ := filepath.Glob(filepath.Join(dir, "*.tlog-proof"))
	for _, path := range receipts {
		data, err := os.ReadFile(path)
		if err == nil {
			err = receipt(p, data)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", filepath.Base(path), err)
		}
	}
	fmt.Printf("good: %d leaves, %d older checkpoints, %d receipts\n", tree.N, len(older), len(receipts))
	return nil
}

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: check_log DIR POLICY")
		os.Exit(2)
	}
	if err := check(os.Args[1], os.Args[2]); err != nil {
		fmt.Println("refused:", err)
		os.Exit(1)
	}
}

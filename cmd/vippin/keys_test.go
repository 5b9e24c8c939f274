// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"vippin/policy"
)

func TestKeyStore(t *testing.T) {
	store := keyStore{dir: filepath.Join(t.TempDir(), "var", "vippin")}
	if _, err := store.Load(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no key: %v", err)
	}
	key, made, err := store.LoadOrMake()
	if err != nil || !made {
		t.Fatal(made, err)
	}
	again, made, err := store.LoadOrMake()
	if err != nil || made || !again.Equal(key) {
		t.Errorf("another key: %v, %v", made, err)
	}
	for path, mode := range map[string]fs.FileMode{store.dir: 0o700, store.path(): 0o600} {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
	left, err := os.ReadDir(store.dir)
	if err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestKeyIsMadeOnce although many want one.
func TestKeyIsMadeOnce(t *testing.T) {
	store := keyStore{dir: t.TempDir()}
	keys := make([]ed25519.PrivateKey, 16)
	var makers sync.WaitGroup
	for i := range keys {
		makers.Go(func() {
			key, _, err := store.LoadOrMake()
			if err != nil {
				t.Error(err)
			}
			keys[i] = key
		})
	}
	makers.Wait()
	for _, key := range keys {
		if !key.Equal(keys[0]) {
			t.Fatal("two keys were made")
		}
	}
}

// TestBadKeyFile: it is told what is wrong and what to do, and the file stays.
func TestBadKeyFile(t *testing.T) {
	private := func(key any) string {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := private(key)
	for name, c := range map[string]struct {
		text string
		mode fs.FileMode
		want string
	}{
		"readable by others": {good, 0o644, "chmod 600"},
		"writable by others": {good, 0o602, "chmod 600"},
		"empty":              {"", 0o600, "vippin keygen"},
		"no PEM":             {"WireGuard=", 0o600, "PEM"},
		"another block":      {strings.ReplaceAll(good, "PRIVATE", "PUBLIC"), 0o600, "PEM"},
		"two keys":           {good + good, 0o600, "one PEM block"},
		"cut off":            {good[:len(good)/2], 0o600, "PEM"},
		"damaged":            {string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")})), 0o600, "is damaged"},
		"ECDSA":              {private(other), 0o600, "no Ed25519 key"},
	} {
		store := keyStore{dir: t.TempDir()}
		if err := os.WriteFile(store.path(), []byte(c.text), c.mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(store.path(), c.mode); err != nil { // whatever the umask
			t.Fatal(err)
		}
		_, made, err := store.LoadOrMake()
		if err == nil || made || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), store.path()) {
			t.Errorf("%s: made %v, %v", name, made, err)
		}
		if text, err := os.ReadFile(store.path()); err != nil || string(text) != c.text {
			t.Errorf("%s: the file was changed (%v)", name, err)
		}
	}
	store := keyStore{dir: t.TempDir()}
	if err := os.Mkdir(store.path(), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, _, err := store.LoadOrMake(); err == nil || !strings.Contains(err.Error(), "is not a file") {
		t.Errorf("a directory: %v", err)
	}
}

// TestTrustIsNotLost when several are trusted at once.
func TestTrustIsNotLost(t *testing.T) {
	store := trustStore{dir: filepath.Join(t.TempDir(), "state")}
	var changes sync.WaitGroup
	const peers = 16
	for i := range peers {
		changes.Go(func() {
			err := store.Change(func(keys map[string]policy.PublicKey) error {
				keys[fmt.Sprintf("router-%d", i)] = policy.PublicKey{byte(i + 1)}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	changes.Wait()
	keys, err := store.Load()
	if err != nil || len(keys) != peers || keys["router-3"] != (policy.PublicKey{4}) {
		t.Errorf("%v, %v", keys, err)
	}
}

// TestWhoseKeyCounts: the configuration's before the store's, and nobody's who is
// no peer.
func TestWhoseKeyCounts(t *testing.T) {
	parse := func(text string) policy.PublicKey {
		key, err := policy.ParsePublicKey(text)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	peers := []policy.PeerConfig{{Name: "router-b", Key: keyB}, {Name: "router-c"}, {Name: "router-d"}}
	keys := peerKeys(peers, map[string]policy.PublicKey{"router-b": parse(keyC), "router-c": parse(keyC), "router-x": parse(keyB)})
	if len(keys) != 2 || keys["router-b"] != parse(keyB) || keys["router-c"] != parse(keyC) {
		t.Errorf("%v", keys)
	}
}

func TestDamagedTrust(t *testing.T) {
	for name, text := range map[string]string{
		"cut off": `{"router-b": "Mc0Q`, "another shape": `["router-b"]`, "bad key": `{"router-b": "abc="}`, "empty": "",
	} {
		store := trustStore{dir: t.TempDir()}
		if err := os.WriteFile(store.path(), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if keys, err := store.Load(); err == nil || keys != nil || !strings.Contains(err.Error(), store.path()) {
			t.Errorf("%s: %v, %v", name, keys, err)
		}
		err := store.Change(func(map[string]policy.PublicKey) error { return nil })
		if left, _ := os.ReadFile(store.path()); err == nil || string(left) != text {
			t.Errorf("%s: it was overwritten (%v)", name, err)
		}
	}
}

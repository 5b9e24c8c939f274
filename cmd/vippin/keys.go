// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"vippin/policy"
)

// keyName is the file in state_dir.
const keyName = "node.key"

// keyStore keeps this router's private key in state_dir, as PEM of PKCS #8
// (RFC 8410): what "openssl genpkey -algorithm ed25519" writes, too.
type keyStore struct{ dir string }

func (s keyStore) path() string { return filepath.Join(s.dir, keyName) }

func publicOf(key ed25519.PrivateKey) policy.PublicKey {
	return policy.PublicKey(key.Public().(ed25519.PublicKey))
}

// Load returns an error that is fs.ErrNotExist when there is no key.
func (s keyStore) Load() (ed25519.PrivateKey, error) {
	f, err := os.Open(s.path())
	if err != nil {
		return nil, fmt.Errorf("read private key: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, fmt.Errorf("read private key: %w", err)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("private key %s is not a file: move it away, then \"vippin keygen\" makes a key", s.path())
	case info.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("private key %s may be read or changed by others (mode %04o): \"chmod 600 %s\", "+
			"or, if others have seen it, remove it and make a new one with \"vippin keygen\"", s.path(), info.Mode().Perm(), s.path())
	}
	data, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil {
		return nil, fmt.Errorf("read private key: %w", err)
	}
	key, err := parsePrivateKey(data)
	if err != nil {
		return nil, fmt.Errorf("private key %s %w: put the right file back, or remove it and make a new one with "+
			"\"vippin keygen\", which the peers must then be told of", s.path(), err)
	}
	return key, nil
}

func parsePrivateKey(data []byte) (ed25519.PrivateKey, error) {
	block, rest := pem.Decode(data)
	if block == nil || block.Type != "PRIVATE KEY" || len(rest) > 0 {
		return nil, errors.New("is not one PEM block PRIVATE KEY")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("is damaged")
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, errors.New("is no Ed25519 key")
	}
	return key, nil
}

// LoadOrMake makes a key if there is none. When two do it at once, both get the
// same one.
func (s keyStore) LoadOrMake() (key ed25519.PrivateKey, made bool, err error) {
	key, err = s.Load()
	if !errors.Is(err, fs.ErrNotExist) {
		return key, false, err
	}
	if err := s.make(); errors.Is(err, fs.ErrExist) {
		key, err = s.Load()
		return key, false, err
	} else if err != nil {
		return nil, false, fmt.Errorf("make private key: %w", err)
	}
	key, err = s.Load()
	return key, true, err
}

// make writes a new key aside and moves it in, whole or not at all; fs.ErrExist
// when there is one.
func (s keyStore) make() error {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(s.dir, "."+keyName+".*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, writeErr := f.Write(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	if err := errors.Join(writeErr, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), s.path()); err != nil {
		return err
	}
	return syncDir(s.dir)
}
